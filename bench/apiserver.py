"""What the measurements on the site's login node share: commands, and connections to the API server.

They are copied there, each with this file beside it.
"""

import base64
import http.client
import json
import os
import ssl
import subprocess
import tempfile
import urllib.parse


def call(*command):
    """What a command says. A command that fails ends the measurement."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Server:
    """The API server as the user's kubeconfig names it, without a client's start in the figures."""

    def __init__(self):
        config = json.loads(call("kubectl", "config", "view", "--raw", "--minify", "-o", "json"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.address = urllib.parse.urlparse(cluster["server"]).netloc
        self.context = ssl.create_default_context(
            cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
        )
        with tempfile.TemporaryDirectory() as folder:
            names = []
            for key in ("client-certificate-data", "client-key-data"):
                names.append(os.path.join(folder, key))
                with open(names[-1], "wb") as file:
                    file.write(base64.b64decode(user[key]))
            self.context.load_cert_chain(*names)

    def connect(self):
        """A connection that stands."""
        connection = http.client.HTTPSConnection(self.address, context=self.context)
        connection.connect()
        return connection
