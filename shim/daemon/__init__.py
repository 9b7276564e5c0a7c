"""The shim: one process per pod or lone container, that serves the Task API to containerd."""
