"""Fused kernels on plain arrays: no layers, no models, only arrays in and arrays out."""

if __name__ != "dlcore.kernels":
    raise ImportError(f"this package is dlcore.kernels and was imported as {__name__!r}; use 'import dlcore.kernels'")
