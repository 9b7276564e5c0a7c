"""The component model: components linked from core modules at the canonical ABI (library).

A component is compiled once (`binary`, `validation`, `planning`: in the compiler) to core modules
and a plan of how to link them, and linked in each guest that runs it. Nothing here knows WASI: what
a component may import is a table of interfaces (`host`), whoever fills it.
"""
