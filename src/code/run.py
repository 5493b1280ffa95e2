# Runs standard input as a script. By way of `python3 -` Python would need a time that grows with the square of its
# length, and tracebacks would not show its lines.
def run():
    import io, linecache, sys

    code = sys.stdin.buffer.read().decode()
    lines = io.StringIO(code, newline=None).readlines()
    linecache.cache["<stdin>"] = len(code), None, lines, "<stdin>"
    # This file, to Python from 3.13 on: code that the script makes goes by the same name.
    linecache.cache.pop("<string>", None)
    hook = sys.excepthook

    def excepthook(kind, error, trace):
        # The frames of this file are not of the script.
        while trace and trace.tb_frame.f_code.co_filename == "<string>":
            trace = trace.tb_next
        hook(kind, error.with_traceback(trace), trace)

    sys.excepthook = excepthook
    # The script's names are those of the module __main__, where this one is not missed.
    names = globals()
    del names["run"]
    exec(compile(code, "<stdin>", "exec", dont_inherit=True), names)


run()
