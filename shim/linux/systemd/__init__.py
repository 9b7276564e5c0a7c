"""systemd's cgroup driver: a container's cgroup is a transient scope that systemd makes (library).

* `scope`: the scope that a spec asks for, and its properties;
* `manager`: the conversation with systemd, over D-Bus.

systemd is told the limits, so that it does not take them back when it is reloaded; but it knows
only some of them, and not all hierarchies of v1, so that `Cgroup.create`, `attach` and `limit` come
after it all the same.
"""
