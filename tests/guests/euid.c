// Prints its effective user: its owner's, if it has the set-user-ID bit and may use it.
#ifdef __wasm__
int main(void) { return 64; }
#else
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
#endif
