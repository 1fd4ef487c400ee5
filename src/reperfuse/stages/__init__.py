"""One function per verb: read, call the science, write."""
