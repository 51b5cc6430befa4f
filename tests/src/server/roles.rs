//! What can be done to one role of a server, and to the links between them.

use super::*;

impl Server {
    /// The process of a role.
    ///
    /// # Errors
    /// When it does not run.
    pub fn role(&self, role: Role) -> anyhow::Result<&Process> {
        self.processes.get(&role).with_context(|| format!("{role:?} does not run"))
    }

    /// Starts a role and waits until it says where it listens, whether or not its peers are there.
    ///
    /// # Errors
    /// When it ends instead; the error shows its log.
    pub async fn start_role(&mut self, role: Role) -> anyhow::Result<()> {
        ensure!(!self.processes.contains_key(&role), "{role:?} runs already");
        let (process, said) = self.spawn(role)?;
        let process = self.processes.entry(role).or_insert(process);
        let line = match tokio::time::timeout(wait::DEADLINE, said).await {
            Ok(Ok(line)) => line,
            _ => {
                bail!("{role:?} did not say where it listens; its log:\n{}", process.log().lines().join("\n"))
            }
        };
        if role == Role::Dev {
            self.at = serde_json::from_str(&line).with_context(|| format!("--json printed {line}"))?;
            self.at.schedulers = vec![self.at.scheduler.clone()];
            self.at.gateways = vec![self.at.gateway.clone()];
        }
        Ok(())
    }

    /// Sets an environment variable for what is started from now on.
    pub fn env(&mut self, name: &str, value: &str) {
        self.change(&[(name, value)]);
    }

    /// SIGKILL of one role, now; returns when the process is gone. Its log up to here is checked.
    pub fn kill9_role(&mut self, role: Role) {
        if let Some(process) = self.processes.remove(&role) {
            process.end(&self.options.expected);
        }
    }

    /// Starts a role again, where it was and on its data, and waits until everything that runs is ready.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn restart_role(&mut self, role: Role) -> anyhow::Result<()> {
        self.kill9_role(role);
        self.start_role(role).await?;
        self.ready().await
    }

    /// SIGSTOP: the process holds its sockets and does nothing. Returns once that is so.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self, role: Role) -> anyhow::Result<()> {
        self.role(role)?.signal("STOP")
    }

    /// SIGCONT: it goes on where it was.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self, role: Role) -> anyhow::Result<()> {
        self.role(role)?.signal("CONT")
    }

    /// SIGTERM to one role; returns its exit code once it has ended.
    ///
    /// # Errors
    /// When it does not run, or does not end in time.
    pub async fn stop_role(&mut self, role: Role) -> anyhow::Result<Option<i32>> {
        self.role(role)?.signal("TERM")?;
        let process = self.processes.get_mut(&role).context("looked up above")?;
        let status = process.ended().await?;
        self.kill9_role(role);
        Ok(status.code())
    }

    /// Cuts the link between a gateway (index from 0) and a scheduler or logic: nothing passes, and nobody is told.
    /// Needs [`Options::links_that_can_be_cut`].
    ///
    /// # Errors
    /// When there is no such link.
    pub fn cut(&self, gateway: usize, peer: Role) -> anyhow::Result<()> {
        self.layout.proxy(gateway, peer).map(crate::proxy::Proxy::cut)
    }

    /// Ends a [`Server::cut`]: what was held back passes now.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn heal(&self, gateway: usize, peer: Role) -> anyhow::Result<()> {
        self.layout.proxy(gateway, peer).map(crate::proxy::Proxy::heal)
    }

    /// The operator's port of one role, as `http://host:port`.
    #[must_use]
    pub fn admin_of(&self, role: Role) -> String {
        self.layout.admin(role).unwrap_or_else(|| self.at.admin.to_string())
    }

    /// The metrics of one role.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn scrape(&self, role: Role) -> anyhow::Result<Scrape> {
        Scrape::fetch(&Admin::from(self.admin_of(role))).await
    }

    /// What readyz of a role says: nothing, or what is missing.
    ///
    /// # Errors
    /// When it does not answer, or with something else.
    pub async fn readyz(&self, role: Role) -> anyhow::Result<Result<(), String>> {
        let answer = http::get(&format!("{}/readyz", self.admin_of(role)), None).await?;
        ensure!(matches!(answer.status, 200 | 503), "readyz: {} {}", answer.status, answer.body);
        Ok(if answer.status == 200 { Ok(()) } else { Err(answer.body) })
    }

    /// Waits until every role that runs says that it is ready, and every scheduler can assign every gateway that runs.
    ///
    /// # Errors
    /// When that is not so in time; says what is missing.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let mut missing = String::new();
        let looked =
            wait::until("ready", || async { Ok(self.missing().await?.is_none().then_some(())) }).await;
        if looked.is_err() {
            missing = self.missing().await?.unwrap_or_default();
        }
        looked.context(missing)
    }

    async fn missing(&self) -> anyhow::Result<Option<String>> {
        let gateways = self.processes.keys().filter(|role| matches!(role, Role::Gateway(_))).count();
        for role in self.processes.keys() {
            if let Err(reason) = self.readyz(*role).await? {
                return Ok(Some(format!("{role:?}: {reason}")));
            }
            if matches!(role, Role::Scheduler(_)) {
                let scrape = self.scrape(*role).await?;
                let known = scrape.sum("berth_scheduler_gateways", &[("state", "assignable")]);
                if known < gateways as f64 {
                    return Ok(Some(format!("{role:?} can assign {known} of {gateways} gateways")));
                }
            }
        }
        Ok(None)
    }
}
