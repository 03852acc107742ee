"""The methods, one file a namespace: thin, they call a service and shape the result."""
