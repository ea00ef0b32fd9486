/* Loads a libclang and lets it read a header, as bindgen will: scripts/setup.sh asks whether that works.
 *
 *     libclang LIBRARY HEADER        0 when the header was read without an error
 *
 * libclang's own headers need not be there: the five functions are declared here, as clang-c/Index.h has them.
 */
#include <dlfcn.h>
#include <stdio.h>

typedef void *(*create_index)(int, int);
typedef void *(*parse)(void *, const char *, const char *const *, int, void *, unsigned, unsigned);
typedef unsigned (*count)(void *);
typedef void *(*diagnostic)(void *, unsigned);
typedef int (*severity)(void *);

/* CXDiagnostic_Error; CXDiagnostic_Fatal is above it. */
enum { ERROR = 3 };

int main(int arguments, char **argument) {
    if (arguments != 3) return 2;
    void *library = dlopen(argument[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    create_index index = (create_index)dlsym(library, "clang_createIndex");
    parse read = (parse)dlsym(library, "clang_parseTranslationUnit");
    count errors = (count)dlsym(library, "clang_getNumDiagnostics");
    diagnostic at = (diagnostic)dlsym(library, "clang_getDiagnostic");
    severity grade = (severity)dlsym(library, "clang_getDiagnosticSeverity");
    if (!index || !read || !errors || !at || !grade)
        return fprintf(stderr, "%s is not libclang\n", argument[1]), 1;
    void *unit = read(index(0, 1), argument[2], NULL, 0, NULL, 0, 0);
    if (!unit) return fprintf(stderr, "%s cannot read a header\n", argument[1]), 1;
    for (unsigned i = 0; i < errors(unit); i++)
        if (grade(at(unit, i)) >= ERROR)
            return fprintf(stderr, "%s does not find its own headers (stddef.h)\n", argument[1]), 1;
    return 0;
}
