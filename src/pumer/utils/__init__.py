"""What every room uses: configs, errors, files, locks, processes, places, provenance."""
