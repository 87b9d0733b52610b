"""Starting and stopping a server: Ray, HAProxy and the processes around them."""
