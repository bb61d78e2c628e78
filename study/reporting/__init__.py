"""What people see: the report and the comparison of studies."""
