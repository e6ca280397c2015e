// Draws the application for whoever has a session, and asks everybody else for one.

import { render } from "preact";
import { useEffect } from "preact/hooks";
import "uplot/dist/uPlot.min.css";
import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/parts.css";
import { startStream, stopStream } from "./state/live";
import { APP, CAME_TO_NONE, FIRST, go, place, to } from "./state/place";
import { preferences, showTheme } from "./state/preferences";
import { followHost, look, session, showBranding, takeToken } from "./state/session";
import { t } from "./text/text";
import { Empty } from "./ui/bits";
import { Overlays, useKeys } from "./ui/palette";
import { Fence, ProblemNote, Skeleton } from "./ui/panel";
import { pageTitle, Shell } from "./ui/shell";
import { DeadLetters } from "./pages/dead-letters";
import { Deliveries } from "./pages/deliveries";
import { DeliveryPage } from "./pages/delivery";
import { Edit } from "./pages/edit";
import { EventPage } from "./pages/event";
import { EventTypePage, EventTypes } from "./pages/event-types";
import { Events } from "./pages/events";
import { Failing } from "./pages/failing";
import { Issues } from "./pages/issues";
import { Keys } from "./pages/keys";
import { Login } from "./pages/login";
import { Overview } from "./pages/overview";
import { ReplayPage, Replays } from "./pages/replays";
import { Replicas } from "./pages/replicas";
import { SubscriptionPage } from "./pages/subscription";
import { Subscriptions } from "./pages/subscriptions";

const PAGES: Record<string, () => preact.JSX.Element | null> = APP === "inspect" ? { deliveries: Deliveries, delivery: DeliveryPage } : {
  overview: Overview,
  deliveries: Deliveries,
  delivery: DeliveryPage,
  events: Events,
  event: EventPage,
  subscriptions: Subscriptions,
  subscription: SubscriptionPage,
  edit: Edit,
  failing: Failing,
  issues: Issues,
  replays: Replays,
  replay: ReplayPage,
  "dead-letters": DeadLetters,
  "event-types": EventTypes,
  "event-type": EventTypePage,
  keys: Keys,
  replicas: Replicas,
};

function App() {
  const state = session.use();
  const { page, query } = place.use();
  const chosen = preferences.use();
  useKeys();
  useEffect(() => {
    showTheme();
    document.documentElement.lang = chosen.language;
  }, [chosen]);
  useEffect(() => {
    showBranding();
    if (state.is !== "in") return;
    startStream();
    return stopStream;
  }, [state.is]);
  useEffect(() => {
    const next = state.is === "in" ? (state.session.portal?.next ?? "").replace(/^\/+/, "") : "";
    if (CAME_TO_NONE && next !== "" && Object.hasOwn(PAGES, next.split("?")[0]!)) go(next, { replace: true });
  }, [state.is]);
  if (state.is === "asking") return <Skeleton lines={4} />;
  if (state.is === "failed") {
    return (
      <div class="gate">
        <ProblemNote problem={state.problem} again={() => void look()} />
      </div>
    );
  }
  if (state.is === "out") return <Login expired={state.expired} answer={state.answer} refresh={state.refresh} />;
  const Page = Object.hasOwn(PAGES, page) ? PAGES[page]! : Missing;
  // A page about one thing is drawn anew for another thing; a list keeps its parts when its filters change.
  const key = `${chosen.language} ${page} ${query.get("id") ?? ""}`;
  return (
    <>
      <Shell>
        <Fence key={key}>
          <Page key={key} />
        </Fence>
      </Shell>
      <Overlays />
    </>
  );
}

function Missing() {
  return (
    <Empty title={t.pages.missing}>
      <a href={to(FIRST)}>{pageTitle(FIRST)}</a>
    </Empty>
  );
}

takeToken();
followHost();
showTheme();
render(<App />, document.getElementById("app")!);
void look();
