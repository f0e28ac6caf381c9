/* SPDX-License-Identifier: BSD-3-Clause
 * One program of two translation units; see unit_two.c. */
#include <filetimer.h>

#include <string.h>

#if defined(__cplusplus)
extern "C"
#endif
filetimer_client *default_of_the_other(void);

int main(int argc, char **argv)
{
    const int same = filetimer_default() == default_of_the_other();
    return argc != 2 || same != (strcmp(argv[1], "same") == 0);
}
