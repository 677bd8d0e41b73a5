"""What ranks passages behind the server, ours and those of others."""
