"""One flat file per method: the file is the method, read from top to bottom like the paper."""
