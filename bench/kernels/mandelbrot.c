// build: -O3 -s -ffp-contract=off
// How many points of a grid of `size` by `size` stay near 0: floating point in registers, short loops.
#define SIZE 1600
#include "kernel.h"

#define STEPS 50

static uint64_t run(int size) {
    uint64_t inside = 0;
    for (int row = 0; row < size; row++) {
        double ci = 2.0 * row / size - 1.0;
        for (int column = 0; column < size; column++) {
            double cr = 2.0 * column / size - 1.5;
            double r = 0, i = 0;
            int step = 0;
            while (step < STEPS && r * r + i * i <= 4) {
                double next = r * r - i * i + cr;
                i = 2 * r * i + ci;
                r = next;
                step++;
            }
            inside += step == STEPS;
        }
    }
    return inside;
}
