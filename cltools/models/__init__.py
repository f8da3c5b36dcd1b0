"""Models of other libraries, by name, and our encoders under the names of other libraries."""
