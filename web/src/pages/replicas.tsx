// The processes of the installation, as each says of itself.

import { get } from "../api/client";
import type { Replica } from "../api/types";
import { countText } from "../format/numbers";
import { lagOf } from "../state/figures";
import { useLoad } from "../state/load";
import { language, span, t, word } from "../text/text";
import { Badge, Distance, Empty, Fact, Facts, Note, Reload, Time } from "../ui/bits";
import { Panel } from "../ui/panel";
import { Head } from "../ui/shell";

export function Replicas() {
  const load = useLoad("cluster", (signal) => get("/v1/cluster", { signal }), { every: 5000 });
  return (
    <>
      <Head title={t.pages.replicas} under={t.replicas.what}>
        <Reload call={load.reload} />
      </Head>
      <Panel title={t.list.title} load={load} lines={6}>
        {(answer) => (answer.replicas.length === 0 ? <Empty title={t.replicas.none} /> : <>{answer.replicas.map((each) => <One key={each.replica} replica={each} />)}</>)}
      </Panel>
    </>
  );
}

function One(props: { replica: Replica }) {
  const { replica } = props;
  const parked = Object.entries(replica.parked).filter(([, count]) => count > 0);
  const breakers = Object.entries(replica.breakers_open).filter(([, count]) => count > 0);
  return (
    <article class="card">
      <h3>
        <span class="break">{replica.replica}</span> {!replica.ready ? <Badge tone="bad">{t.replicas.notReady}</Badge> : <Badge tone="good">{t.replicas.ready}</Badge>}
      </h3>
      {replica.problems.map((each) => (
        <Note key={each} tone="bad">
          {each}
        </Note>
      ))}
      {replica.warnings.map((each) => (
        <Note key={each} tone="warn">
          {each}
        </Note>
      ))}
      <Facts>
        <Fact name={t.replicas.roles}>{replica.roles.join(", ")}</Fact>
        <Fact name={t.columns.version}>{replica.version}</Fact>
        <Fact name={t.replicas.started}>
          <Time at={replica.started_at} />
        </Fact>
        <Fact name={t.replicas.heard}>
          <Distance at={replica.reported_at} />
        </Fact>
        <Fact name={t.replicas.lag}>{Object.keys(replica.lag).length === 0 ? "–" : countText(lagOf(replica.lag), language)}</Fact>
        <Fact name={t.replicas.inFlight}>
          {countText(replica.queued, language)} / {countText(replica.in_flight, language)} / {countText(replica.held, language)}
        </Fact>
        <Fact name={t.replicas.parked}>{parked.length === 0 ? "0" : parked.map(([name, count]) => `${name} ${countText(count, language)}`).join(", ")}</Fact>
        <Fact name={t.replicas.breakers}>{breakers.length === 0 ? "0" : breakers.map(([name, count]) => `${word(t.replicas.scopes, name)} ${countText(count, language)}`).join(", ")}</Fact>
        {replica.history ? (
          <Fact name={t.replicas.history}>
            {replica.history.as_of ? span(Math.max(0, Date.parse(replica.reported_at ?? "") - Date.parse(replica.history.as_of))) : "–"} · {countText(replica.history.behind_records, language)}
          </Fact>
        ) : null}
        <Fact name={t.replicas.partitions} wide>
          {Object.entries(replica.partitions)
            .map(([topic, partitions]) => `${topic}: ${partitions.join(" ")}`)
            .join(" · ") || "–"}
        </Fact>
      </Facts>
    </article>
  );
}
