// build: -O1 -fno-inline
// Traps in a named function called by another: the backtrace has to show both.
// argv[1] picks the trap: unreachable (default), memory, stack.
#include <string.h>
#include <unistd.h>

volatile int sink;

__attribute__((noinline)) void deeper(const char *how) {
    sink = 1;
    if (!strcmp(how, "memory")) sink = *(volatile int *)0xfffffff0u;
    __builtin_trap();
}

__attribute__((noinline)) void outer(const char *how) {
    sink = 2;
    deeper(how);
    sink = 3;
}

// Not a tail call, and wasm locals only: it is the engine's stack that ends, not the guest's.
__attribute__((noinline)) int recurse(int n) {
    sink = n;
    return recurse(n + 1) + sink;
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "unreachable";
    write(1, "before\n", 7);
    if (!strcmp(how, "stack")) return recurse(1);
    outer(how);
    write(1, "after\n", 6);
    return 0;
}
