// build: -O3 -s -ffp-contract=off
// The norm of a matrix, `size` wide, whose elements are computed whenever they are needed: divisions.
#define SIZE 1400
#include "kernel.h"
#include <math.h>

#define LARGEST 4096
#define ROUNDS 10

static double u[LARGEST], v[LARGEST], between[LARGEST];

static double element(int i, int j) { return 1.0 / ((i + j) * (i + j + 1) / 2 + i + 1); }

static void times(int size, const double *in, double *out) {
    for (int i = 0; i < size; i++) {
        double sum = 0;
        for (int j = 0; j < size; j++) sum += element(i, j) * in[j];
        out[i] = sum;
    }
}

static void times_transposed(int size, const double *in, double *out) {
    for (int i = 0; i < size; i++) {
        double sum = 0;
        for (int j = 0; j < size; j++) sum += element(j, i) * in[j];
        out[i] = sum;
    }
}

static uint64_t run(int size) {
    if (size > LARGEST) abort();
    for (int i = 0; i < size; i++) u[i] = 1;
    for (int round = 0; round < ROUNDS; round++) {
        times(size, u, between);
        times_transposed(size, between, v);
        times(size, v, between);
        times_transposed(size, between, u);
    }
    double uv = 0, vv = 0;
    for (int i = 0; i < size; i++) {
        uv += u[i] * v[i];
        vv += v[i] * v[i];
    }
    return bits(sqrt(uv / vv));
}
