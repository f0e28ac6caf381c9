/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A worker in C that does a step of work under a timer, again and again; with
 * "hang", the third step never ends, and a server kills the worker for it; with
 * "hang-once", only in its first life.
 *
 *     cc $(python -m filetimer --cflags) c/examples/worker.c -o worker
 *     filetimer run --max-restarts 1 -- ./worker hang-once
 *
 * Without FILETIMER_PATH (or TORCHELASTIC_TIMER_FILE) it runs all the same.
 */
#include <filetimer.h>

#include <stdio.h>
#include <stdlib.h>
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

/* `filetimer run` says how often it has restarted its workers. */
static int is_first_life(void)
{
    const char *restarts = getenv("FILETIMER_RESTART_COUNT");
    return restarts == NULL || strcmp(restarts, "0") == 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    const int hang = strcmp(what, "hang") == 0 ||
                     (strcmp(what, "hang-once") == 0 && is_first_life());
    int number;
    for (number = 0; number < 5; number++) {
        step(number, hang);
        printf("step %d\n", number);
        fflush(stdout);
    }
    return 0;
}
