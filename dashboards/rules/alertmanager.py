"""The receivers of alerts, and the alerts that suppress others."""

from dashboards.rules.values import Values
from dashboards.rules.writing import HEAD

_TEMPLATE = """\
{head}
# The receivers are examples: anything that takes Alertmanager's webhook.
route:
  receiver: ticket
  group_by: [alertname, job, agent]
  group_wait: {wait}
  group_interval: {interval}
  repeat_interval: {repeat}
  routes:
    # Always fires; its receiver raises the alarm if notifications stop.
    - receiver: deadman
      matchers: ['alertname = "AgentWatchdog"']
      group_wait: 0s
      group_interval: {beat}
      repeat_interval: {beat}
    - receiver: page
      matchers: ['severity = "critical"']
      group_wait: {page_wait}
      repeat_interval: {page_repeat}
    - receiver: ticket
      matchers: ['severity =~ "warning|info"']

inhibit_rules:
  # If an instance is down, its other alerts add nothing.
  - source_matchers: ['alertname = "AgentServiceDown"']
    target_matchers: ['alertname != "AgentServiceDown"', 'instance =~ ".+"']
    equal: [job, instance]
  # A person who is woken for an agent looks at all of it. A label that both lack counts as equal,
  # so both must name an agent.
  - source_matchers: ['severity = "critical"', 'agent =~ ".+"']
    target_matchers: ['severity =~ "warning|info"', 'agent =~ ".+"']
    equal: [job, agent]
  # A provider that is down explains the budget that burns.
  - source_matchers: ['alertname = "AgentLlmErrors"']
    target_matchers: ['alertname = "AgentErrorBudgetBurn"']
    equal: [job]
  # A store that does not answer takes no writes.
  - source_matchers: ['alertname = "AgentStoreUnusable"']
    target_matchers: ['alertname = "AgentJournalStuck"']
    equal: [job, instance]

receivers:
  - name: page
    webhook_configs: [{{url: '{page}', send_resolved: true}}]
  - name: ticket
    webhook_configs: [{{url: '{ticket}', send_resolved: true}}]
  - name: deadman
    webhook_configs: [{{url: '{deadman}', send_resolved: false}}]
"""


def configuration(values: Values) -> str:
    """Return the configuration of Alertmanager."""
    receivers = values["receivers"]
    return _TEMPLATE.format(
        head=HEAD,
        wait=values.span("30s"),
        interval=values.span("5m"),
        repeat=values.span("12h"),
        beat=values.span("1m"),
        page_wait=values.span("10s"),
        page_repeat=values.span("1h"),
        page=receivers.text("page"),
        ticket=receivers.text("ticket"),
        deadman=receivers.text("deadman"),
    )
