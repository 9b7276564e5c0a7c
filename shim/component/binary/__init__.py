"""The binary format of components: bytes in, definitions out (library; runs in the compiler).

Binary.md. Here is only what the bytes say: what an index refers to, and whether it may, is the
matter of `validation`. Everything that is counted is counted against what is left of the input.
"""
