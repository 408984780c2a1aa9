"""Registry, download, verification and safe reading of files of weights and data sets."""
