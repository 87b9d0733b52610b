"""The documentation: pages, and in `generators` what makes a site of them."""
