/* SPDX-License-Identifier: BSD-3-Clause */
#include <filetimer.h>

#if defined(__cplusplus)
extern "C"
#endif
filetimer_client *default_of_the_other(void);

filetimer_client *default_of_the_other(void)
{
    FILETIMER_EXPIRES(1.0) {}
    return filetimer_default();
}
