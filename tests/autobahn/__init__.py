"""Autobahn's fuzzing client against both engines: see the nox session `autobahn`."""
