// build: -O3 -s -ffp-contract=off
// The product of two matrices of doubles, `size` by `size`: what a compiler makes of a plain inner loop.
#define SIZE 800
#include "kernel.h"

#define LARGEST 1024

static double a[LARGEST * LARGEST], b[LARGEST * LARGEST], product[LARGEST * LARGEST];

static uint64_t run(int size) {
    if (size > LARGEST) abort();
    for (int i = 0; i < size * size; i++) {
        a[i] = pseudorandom() % 1000 / 100.0;
        b[i] = pseudorandom() % 1000 / 100.0;
    }
    for (int row = 0; row < size; row++)
        for (int inner = 0; inner < size; inner++) {
            double factor = a[row * size + inner];
            for (int column = 0; column < size; column++)
                product[row * size + column] += factor * b[inner * size + column];
        }
    double sum = 0;
    for (int i = 0; i < size * size; i++) sum += product[i];
    return bits(sum);
}
