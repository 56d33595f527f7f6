"""A cluster in one process under one seed. See README.md."""
