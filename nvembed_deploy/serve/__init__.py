"""This file owns nothing: the package is what puts an encoder into servers that others write."""
