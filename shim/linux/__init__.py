"""Linux facilities, one module each: a library without process state."""
