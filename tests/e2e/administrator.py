"""What administrators do on the command line, for tests that need more than the first key."""

from tests.e2e.server import Server


def admin(server: Server, *args: str) -> str:
    """What the command prints, which must succeed."""
    done = server.moonbase(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def new_key(server: Server, region: str = "global", name: str = "acme", **scopes: str) -> str:
    """The secret of a key of a new post-paid organization; `scopes` are options of `keys create`, several with `,`."""
    owner = admin(server, "orgs", "create", "--name", name, "--region", region, "--postpaid")
    project = admin(server, "projects", "create", "--org", owner, "--name", "web")
    options = [
        part for option, values in scopes.items() for value in values.split(",") for part in (f"--{option}", value)
    ]
    return admin(server, "keys", "create", "--name", "k", "--project", project, *options)
