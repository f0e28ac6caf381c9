/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A worker in C that does a step of work under a timer, again and again; with
 * "hang", the third step never ends, and a server kills the worker for it.
 *
 *     cc -Ic/include c/examples/worker.c -o worker
 *     FILETIMER_PATH=/run/job/timers ./worker [hang]
 *
 * Without FILETIMER_PATH (or TORCHELASTIC_TIMER_FILE) it runs all the same.
 */
#include <filetimer.h>

#include <stdio.h>
#include <string.h>

static void step(int number, int hang)
{
    /* One second for a step, wherever it is left. */
    FILETIMER_EXPIRES(1.0) {
        if (hang && number == 2)
            for (;;)
                pause();
        poll(NULL, 0, 10); /* the work */
    }
}

int main(int argc, char **argv)
{
    const int hang = argc > 1 && strcmp(argv[1], "hang") == 0;
    int number;
    for (number = 0; number < 5; number++) {
        step(number, hang);
        printf("step %d\n", number);
        fflush(stdout);
    }
    return 0;
}
