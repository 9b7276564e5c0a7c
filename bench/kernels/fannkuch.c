// build: -O3 -s -ffp-contract=off
// Of all orders of `size` numbers, the most often that one has its front reversed, as far as its first
// number says, until that is 0: small loads and stores, branches that nobody foresees.
#define SIZE 10
#include "kernel.h"

#define LARGEST 12

static int flips(int size, const int *order) {
    int deck[LARGEST], count = 0;
    for (int i = 0; i < size; i++) deck[i] = order[i];
    for (int first; (first = deck[0]) != 0; count++) {
        for (int low = 0, high = first; low < high; low++, high--) {
            int swapped = deck[low];
            deck[low] = deck[high];
            deck[high] = swapped;
        }
    }
    return count;
}

static uint64_t run(int size) {
    int order[LARGEST], turned[LARGEST] = {0};
    uint64_t most = 0, sum = 0;
    if (size < 1 || size > LARGEST) abort();
    for (int i = 0; i < size; i++) order[i] = i;
    for (;;) {
        uint64_t count = flips(size, order);
        if (count > most) most = count;
        sum += count;
        // The next order: turn the first two, three, ... until those have been turned all the way.
        int length = 2;
        for (;; length++) {
            if (length > size) return sum << 8 | most;
            int first = order[0];
            for (int i = 1; i < length; i++) order[i - 1] = order[i];
            order[length - 1] = first;
            if (++turned[length - 1] < length) break;
            turned[length - 1] = 0;
        }
    }
}
