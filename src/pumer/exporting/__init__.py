"""Models as programs of other runtimes: exporting, running and measuring them."""
