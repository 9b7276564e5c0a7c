// build: -O3 -s -ffp-contract=off
// Five bodies that attract each other, `size` steps of time: floating point, with divisions and roots.
#define SIZE 4000000
#include "kernel.h"
#include <math.h>

#define BODIES 5

static struct body { double x, y, z, vx, vy, vz, mass; } bodies[BODIES];

static void advance(double dt) {
    for (int i = 0; i < BODIES; i++) {
        struct body *a = &bodies[i];
        for (int j = i + 1; j < BODIES; j++) {
            struct body *b = &bodies[j];
            double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
            double square = dx * dx + dy * dy + dz * dz;
            double pull = dt / (square * sqrt(square));
            a->vx -= dx * b->mass * pull;
            a->vy -= dy * b->mass * pull;
            a->vz -= dz * b->mass * pull;
            b->vx += dx * a->mass * pull;
            b->vy += dy * a->mass * pull;
            b->vz += dz * a->mass * pull;
        }
    }
    for (int i = 0; i < BODIES; i++) {
        struct body *body = &bodies[i];
        body->x += dt * body->vx;
        body->y += dt * body->vy;
        body->z += dt * body->vz;
    }
}

static uint64_t run(int size) {
    // A heavy one that rests, and light ones around it, each at the speed of a circle.
    bodies[0].mass = 40;
    for (int i = 1; i < BODIES; i++) {
        double distance = 5.0 * i;
        bodies[i] = (struct body){.x = distance, .z = 0.1 * i, .vy = sqrt(40 / distance), .mass = 0.01 * i};
    }
    for (int step = 0; step < size; step++) advance(0.001);
    double sum = 0;
    for (int i = 0; i < BODIES; i++) sum += bodies[i].x + bodies[i].y + bodies[i].z;
    return bits(sum);
}
