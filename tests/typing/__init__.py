"""Every public call with the type that it returns. Nothing here runs: `make lint` has mypy and pyright read it."""
