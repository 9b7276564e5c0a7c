"""WASI preview 1 as Python functions over an engine's linear memory (library).

Written from the specification, `wasi_snapshot_preview1.witx`, and from what wasi-libc and Rust's
std make of it. One file per area; `preview1.bind` puts them together and gives an engine the host
functions of a `Program`, which is where a guest's grants and its memory go.
"""
