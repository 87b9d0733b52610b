"""From the code to pages of the documentation site. Each file makes one table or list."""
