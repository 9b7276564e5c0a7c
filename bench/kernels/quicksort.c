// build: -O3 -s -ffp-contract=off
// Sorts `size` numbers: recursion, comparisons, memory that does not fit the caches.
#define SIZE 3000000
#include "kernel.h"

static void sort(uint32_t *from, uint32_t *last) {
    while (from < last) {
        uint32_t pivot = from[(last - from) / 2];
        uint32_t *low = from, *high = last;
        while (low <= high) {
            while (*low < pivot) low++;
            while (*high > pivot) high--;
            if (low <= high) {
                uint32_t swapped = *low;
                *low++ = *high;
                *high-- = swapped;
            }
        }
        // The smaller part by recursion, so that the stack stays low.
        if (high - from < last - low) {
            sort(from, high);
            from = low;
        } else {
            sort(low, last);
            last = high;
        }
    }
}

static uint64_t run(int size) {
    uint32_t *numbers = malloc(sizeof *numbers * size);
    if (!numbers) abort();
    for (int i = 0; i < size; i++) numbers[i] = pseudorandom();
    sort(numbers, numbers + size - 1);
    uint64_t sum = 0;
    for (int i = 0; i < size; i++) sum = sum * 31 + numbers[i];
    free(numbers);
    return sum;
}
