// The smallest useful program: what start times are measured with, as wasm and natively.
#include <unistd.h>

int main(void) {
    static const char text[] = "hello from pywasm\n";
    return write(1, text, sizeof text - 1) == sizeof text - 1 ? 0 : 1;
}
