// build: -O3 -s -ffp-contract=off
// SHA-256 (FIPS 180-4) of `size` blocks: 32-bit additions, rotations and logic. Its constants are the first bits of
// the fractional parts of roots of primes, and are computed here as that.
#define SIZE 1000000
#include "kernel.h"

static uint32_t constants[64], state[8];

static uint32_t right(uint32_t word, int by) { return word >> by | word << (32 - by); }

// The first 32 bits of the fraction of the square (or cube) root of a prime: the largest r for which
// r^n <= prime * 2^(32 n), of which only the lower half of r's bits is the fraction.
static uint32_t fraction(uint64_t prime, int n) {
    unsigned __int128 root = 0;
    for (int bit = 36; bit >= 0; bit--) {
        unsigned __int128 tried = root | (unsigned __int128)1 << bit;
        unsigned __int128 power = n == 2 ? tried * tried : tried * tried * tried;
        if (power <= (unsigned __int128)prime << (32 * n)) root = tried;
    }
    return (uint32_t)root;
}

static void prepare(void) {
    int found = 0;
    for (uint64_t number = 2; found < 64; number++) {
        int prime = 1;
        for (uint64_t divisor = 2; divisor * divisor <= number; divisor++) prime &= number % divisor != 0;
        if (!prime) continue;
        if (found < 8) state[found] = fraction(number, 2);
        constants[found++] = fraction(number, 3);
    }
}

static void block(const uint32_t *words) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) w[i] = words[i];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = right(w[i - 15], 7) ^ right(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = right(w[i - 2], 17) ^ right(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = h + (right(e, 6) ^ right(e, 11) ^ right(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
        uint32_t t2 = (right(a, 2) ^ right(a, 13) ^ right(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1;
        d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

// Hashes a message of `size` blocks of zeroes, each beginning with its number.
static uint64_t run(int size) {
    uint32_t words[16] = {0};
    prepare();
    for (int i = 0; i < size; i++) {
        words[0] = i;
        block(words);
    }
    uint64_t length = (uint64_t)size * 512;
    uint32_t padding[16] = {0x80000000, [14] = length >> 32, [15] = (uint32_t)length};
    block(padding);
    return (uint64_t)state[0] << 32 | state[1];
}
