// VQDM_CLONES compiles a function once for each of three instruction sets; which one runs is decided at load time.

#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VQDM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VQDM_CLONES
#endif
