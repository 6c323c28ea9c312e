"""Scrape configuration, rules, routes and dashboards for Prometheus, Alertmanager and Grafana."""
