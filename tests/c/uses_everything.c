/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Each public name of filetimer.h, twice included, used once. For compilers and
 * for nm; what the functions do is tested in client_test.c.
 */
#include <filetimer.h>
#include <filetimer.h>

#if FILETIMER_VERSION_NUMBER != FILETIMER_VERSION_MAJOR * 10000 + \
        FILETIMER_VERSION_MINOR * 100 + FILETIMER_VERSION_PATCH
#error "version"
#endif

static int use_client(filetimer_client *client)
{
    static const char version[] = FILETIMER_VERSION, here[] = FILETIMER_HERE;
    int sum = filetimer_init(client, "/nonexistent/fifo", 9, FILETIMER_MASK_SIGPIPE);
    sum += filetimer_configured(client);
    filetimer_set_wait(client, FILETIMER_WAIT_SECONDS);
    sum += filetimer_acquire(client, here, 1.0) + filetimer_release(client, version);
    sum += filetimer_try_acquire(client, "x", 1.0) + filetimer_try_release(client, "x");
    sum += filetimer_acquire_n(client, "x", 1, 1.0, FILETIMER_DEFAULT_WAIT);
    sum += filetimer_release_n(client, "x", 1, FILETIMER_DEFAULT_WAIT);
    filetimer_close(client);
    return sum;
}

static int use_handle(void)
{
    filetimer_handle handle;
    int sum = filetimer_begin(&handle, NULL, "x", FILETIMER_LONGEST);
    sum += filetimer_extend(&handle, 1.0) + filetimer_try_extend(&handle, 1.0);
    sum += filetimer_end(&handle) + filetimer_try_end(&handle);
    sum += filetimer_try_begin(&handle, NULL, "x", 1.0);
    sum += filetimer_begin_n(&handle, NULL, "x", 1, 1.0, 0.0);
    return sum + handle.error + handle.armed;
}

static int use_attributes(void)
{
    filetimer_handle handle;
    filetimer_attributes attributes = {0, 0, ""};
    int sum = filetimer_attribute_int(&attributes, "rank", FILETIMER_ATTRIBUTES_MAX);
    sum += filetimer_attribute_string(&attributes, "device", "cuda:1");
    sum += filetimer_set_attributes(NULL, &attributes);
    sum += filetimer_begin_with(&handle, NULL, "x", 1.0, &attributes);
    return sum + filetimer_end(&handle);
}

static int use_macros(int n)
{
    FILETIMER_EXPIRES(1.0)
        n++;
    FILETIMER_EXPIRES(1.0) {
        FILETIMER_EXPIRES_AS(inner, filetimer_default(), "x", 1.0) {
            n += 1 + inner.error;
        }
    }
    if (n > 0)
        FILETIMER_EXPIRES(1.0) return n;
    else
        return 0;
    return -1;
}

static int use_encoder(void)
{
    char line[FILETIMER_RECORD_MAX];
    filetimer_record record;
    filetimer_prepare(&record, "x");
    return filetimer_encode(line, sizeof line, &record);
}

int main(void)
{
    static filetimer_client client;
    use_client(&client);
    filetimer_configure(NULL, 9, 0);
    return use_handle() + use_attributes() < 0 || use_macros(0) != 2 || use_encoder() < 0;
}
