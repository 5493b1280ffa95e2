// Prints the frequency of the processor's time stamp counter in kHz, measured against the clock that the kernel derives
// from it. 50 ms make it exact to some parts in a million.
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct moment {
    double nanoseconds;
    double ticks;
};

// The reading that was disturbed least of 32: the clock between the two closest readings of the counter.
static struct moment now(void)
{
    struct moment best = {0};
    unsigned long long closest = -1ULL;
    for (int i = 0; i < 32; i++) {
        struct timespec t;
        unsigned long long before = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        unsigned long long after = __rdtsc();
        if (after - before < closest) {
            closest = after - before;
            best.nanoseconds = t.tv_sec * 1e9 + t.tv_nsec;
            best.ticks = before + closest / 2.0;
        }
    }
    return best;
}

int main(void)
{
    struct moment start = now();
    nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
    struct moment end = now();
    printf("%.0f\n", (end.ticks - start.ticks) / (end.nanoseconds - start.nanoseconds) * 1e6);
    return 0;
}
