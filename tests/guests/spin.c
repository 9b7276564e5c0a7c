// Says that it is running, then never calls the host again.
#include <unistd.h>

int main(void) {
    volatile unsigned n = 0;
    write(1, "spinning\n", 9);
    for (;;) n++;
}
