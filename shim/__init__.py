"""containerd-shim-pywasm-v1: a containerd shim that runs WebAssembly."""

__version__ = "0.1.0"
