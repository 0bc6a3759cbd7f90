"""Several processes behind one socket: a supervisor, a template with the models, and workers forked from it.

    serve                  the supervisor: binds the socket, imports next to nothing, lives as long as the service
     └─ template           imports everything, loads and proves the models, then forks; looks after its workers
         ├─ worker         the ordinary service: event loop, threads, connections, journal, all made after the fork
         └─ worker

Models are in memory once, since a fork shares what nobody writes to. A new generation (SIGHUP) is a new template: what
it loads can crash, hang or be refused without harm to the one that serves.
"""
