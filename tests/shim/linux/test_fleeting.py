import os

from shim.linux import fleeting


def test_a_fork_has_zeros_and_so_has_who_wiped() -> None:
    view = fleeting.buffer(100_000)
    assert bytes(view) == bytes(100_000)
    view[50_000:50_006] = b"secret"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, view[50_000:50_006])
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == bytes(6)
    assert bytes(view[50_000:50_006]) == b"secret"
    fleeting.wipe(view[:50_003])
    assert bytes(view[49_999:50_007]) == b"\0\0\0\0ret\0"
    os.close(reader)
    os.close(writer)
