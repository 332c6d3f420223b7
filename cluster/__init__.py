from cluster.import_path import put_packages_first

put_packages_first()  # before any other package is imported, in every process: Ray's workers import this one first
